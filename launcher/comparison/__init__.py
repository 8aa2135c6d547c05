"""Sets the models of a run side by side: repetitions put together, intervals, and a page of it all."""
