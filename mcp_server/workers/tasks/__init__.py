"""Tasks of a sweep or of a large merge, and where they run: on this machine or on a Ray cluster, behind one small interface."""
