"""Accuracy: the published evaluation, and what each precision keeps of it."""
