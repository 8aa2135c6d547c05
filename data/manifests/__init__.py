"""Lists of recordings that others wrote, as rows with one set of columns: tables, and those of Kaldi and lhotse."""
