"""A package of its own: Hugging Face's ``evaluate`` may be installed beside the tests."""
