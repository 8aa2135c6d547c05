"""Files that an exported model carries with it: they run without Chorus."""
