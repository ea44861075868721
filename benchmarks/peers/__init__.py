"""What is measured: a bundle or one of its peers, each in a process of its own."""
