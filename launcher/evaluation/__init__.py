"""`chorus evaluate MODEL DATA`: how well a finished model recognises shards or a manifest, and where it does not.

`sets` opens what is recognised, `recognition` recognises it in one or several processes, `normalisation` makes texts
comparable, `scores` counts errors, `calibration` compares confidences with them, `conditions` says how recordings are
changed to see what a model withstands, `page` writes it down.
"""
