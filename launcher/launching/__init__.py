"""How the processes of a stage come to run on one host or many: hosts and ranks, one file per kind of launcher."""
