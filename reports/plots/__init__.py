"""The plots of the reports, one file each: rows or runs of one data set in, a `Plot` out.

Each function draws one picture or returns None when nothing of it was measured. Colour is the setup
(`setups.COLOURS`), marker shape or panel is the backend, hollow or dashed is the fused of two
executions. Against cost, the shape is the recipe, and hollow is published. Lines and points carry
their names where they stand, so that a picture reads without its text. matplotlib is imported by
these files alone.
"""
