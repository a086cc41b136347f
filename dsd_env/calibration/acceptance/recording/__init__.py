"""Recording acceptance with real models. Needs torch and transformers (extra ``record``) when run."""
