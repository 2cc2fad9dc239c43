"""What the stores hold, as one page; and as figures for papers."""
