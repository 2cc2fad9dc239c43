"""The stages: each declares its stores, and cuts what is missing in them into tasks."""
