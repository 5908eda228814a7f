"""What a comparison says: verdict, tables, pages, model card."""
