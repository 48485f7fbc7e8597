"""RUN FOLDERS: layout, record, checkpoints, manifest, resume; opening what a person names as MODEL."""
