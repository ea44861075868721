"""Sentences to BERT's token ids, as the uncased WordPiece of Devlin et al. (arXiv 1810.04805) makes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import BundleError, InputError, PromptError, reason_of

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Places where a text may be cut without changing the ids before the cut: BERT puts a word boundary before white space,
# before punctuation and before these ideographs; the brackets are left out, special tokens contain them.
_BOUNDARY = re.compile(r"[ \t\n!-/:-@\\^-`{-~\u3400-\u4dbf\u4e00-\u9fff]")
_PREFIXES = (2_000, 64_000)
_SHOWN = 40  # characters of an unknown word


def build_tokenizer(vocab: Path | Sequence[str]) -> Tokenizer:
    """The tokenizer of `bert-base-uncased` from its vocabulary: a file with one token a line, or the tokens in order.

    The same components as transformers' `BertTokenizer`. Raises InputError if a special token is missing.
    """
    tokens = vocab.read_text(encoding="utf-8").removesuffix("\n").split("\n") if isinstance(vocab, Path) else vocab
    ids = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise InputError(f"the vocabulary has no {missing[0]}; give that of bert-base-uncased")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


class SentenceTokenizer:
    """Token ids of fixed length: [CLS], word pieces, [SEP], cut to the first `max_words` ids and padded with zeros.

    A sentence that is too long loses its [SEP], as in the evaluation of the paper. Thread-safe.
    """

    def __init__(self, tokenizer: Tokenizer, max_words: int = 20) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_words = max_words

    @classmethod
    def from_json(cls, data: bytes, max_words: int = 20) -> SentenceTokenizer:
        """From the content of `tokenizer.json`. Raises BundleError if that is not a BERT tokenizer."""
        with _sound():
            tokenizer = Tokenizer.from_str(data.decode("utf-8"))
            made = cls(tokenizer, max_words)
            complete = all(tokenizer.token_to_id(token) is not None for token in SPECIAL_TOKENS)
            sound = complete and tokenizer.encode("").tokens == ["[CLS]", "[SEP]"]
        if not sound:
            raise BundleError("tokenizer.json is not BERT's tokenizer: export the bundle again with lavt-export onnx")
        return made

    def encode(
        self, sentence: str, *, blank: bool = False
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Returns input_ids (max_words,), attention_mask (max_words,) of 1 and 0, and whether ids were cut off.

        Raises PromptError if the sentence is not text, holds a lone surrogate, or has no word; with `blank`, one of no
        word is [CLS] [SEP], as evaluations of published models have it.
        """
        if not isinstance(sentence, str):
            raise PromptError(f"a sentence must be text (str), not {type(sentence).__name__}")
        try:
            sentence.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"the sentence is not valid Unicode (a lone surrogate at {error.start})") from None
        ids = self._encoding(sentence).ids
        if len(ids) <= 2 and not blank:
            raise PromptError("the sentence is empty: name the object to segment, such as 'the man in red'")
        kept = ids[: self.max_words]
        input_ids = np.zeros(self.max_words, np.int64)
        input_ids[: len(kept)] = kept
        attention_mask = np.zeros(self.max_words, np.int64)
        attention_mask[: len(kept)] = 1
        return input_ids, attention_mask, len(ids) > self.max_words

    def unknown_words(self, sentence: str) -> tuple[tuple[str, ...], bool]:
        """The words that the vocabulary does not have, among those that are read, and whether it has any other word.

        WordPiece makes [UNK] of such a word, or spells it, character by character, where it has all of them. Unknown
        words with nothing between them, such as ideographs, are one. Each is given once, as it is written, and short.
        """
        encoding = self._encoding(sentence)
        words: list[list[int]] = []
        for index, token in enumerate(encoding.tokens):
            if token.startswith("##"):
                words[-1].append(index)
            elif token == "[UNK]" or token not in SPECIAL_TOKENS:
                words.append([index])
        spans: list[tuple[int, int]] = []
        known = False
        for pieces in (word for word in words if word[0] < self.max_words):
            start, end = encoding.offsets[pieces[0]][0], encoding.offsets[pieces[-1]][1]
            if any(self._says_something(encoding.tokens[index], len(pieces)) for index in pieces):
                known = known or any(map(str.isalnum, sentence[start:end]))
            elif spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return tuple(dict.fromkeys(sentence[start : min(end, start + _SHOWN)] for start, end in spans)), known

    @staticmethod
    def _says_something(token: str, pieces: int) -> bool:
        return token != "[UNK]" and (pieces == 1 or len(token.removeprefix("##")) > 1)

    def _encoding(self, sentence: str) -> Encoding:
        """All ids of a sentence; of a very long one at least the first `max_words` + 1, from a prefix if possible."""
        for length in _PREFIXES:
            if len(sentence) <= length:
                break
            cut = max((match.start() for match in _BOUNDARY.finditer(sentence, 0, length)), default=0)
            encoding = self._whole_encoding(sentence[:cut])
            if len(encoding.ids) > self.max_words + 1:
                return encoding
        return self._whole_encoding(sentence)

    def _whole_encoding(self, text: str) -> Encoding:
        with _sound():
            return self._tokenizer.encode(text)


@contextmanager
def _sound() -> Iterator[None]:
    """Turns what tokenizers raises, for a file that is not its own, into BundleError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # plain Exception; and a panic in Rust derives from BaseException alone
        raise BundleError(f"tokenizer.json is not a tokenizer ({reason_of(error)})") from None
