"""What serves a query tower: torch and the standard library, and nothing else of this package but schema and errors."""
