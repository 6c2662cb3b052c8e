"""How results are shown: figures, tables, text."""
