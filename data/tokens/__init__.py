"""Text that other tools have tokenised: the formats of its files, and a store that refers to them."""
