"""The operator's commands: `igris-ingest ...`. Each file has a subject: its commands, and their SQL beside them."""
