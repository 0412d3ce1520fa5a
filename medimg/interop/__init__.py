"""Images of other libraries as volumes, and volumes as images of other libraries."""
