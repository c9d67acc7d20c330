"""``rankscope import``: scores from elsewhere become a finished study."""
