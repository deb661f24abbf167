"""What serves a query tower: it needs torch alone, and of this package the schema and the errors."""
