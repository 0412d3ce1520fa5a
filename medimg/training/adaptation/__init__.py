"""Choice between methods of adaptation."""
