"""Records acceptance of real model pairs, imports what engines log, and fits run models to both."""
