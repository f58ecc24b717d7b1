"""The same three answers, written the way a competent user would without this service."""
