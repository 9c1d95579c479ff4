"""Quality: trained models compared, and shown."""
