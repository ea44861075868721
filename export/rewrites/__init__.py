"""The exact rewrites of LAVT, one module each, and the two graphs that are made of them."""
