"""RUN FOLDERS: layout, record, checkpoints, manifest, resume; opening what the user names as MODEL."""
