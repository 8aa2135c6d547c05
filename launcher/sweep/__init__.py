"""One recipe under many settings: runs of their own, that share what their settings do not touch."""
