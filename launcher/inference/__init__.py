"""Recognition with finished models: searches, streaming, evaluation. Nothing here imports training."""
