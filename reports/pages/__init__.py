"""The pages that are written: the report of a results folder, the page of all devices, and the
marked sections of the READMEs."""
