"""Pure: ridge regression, its cross-validation, streaming over targets, and what it needs in memory."""
