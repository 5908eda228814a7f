"""What families with an autoencoder of cells share."""
