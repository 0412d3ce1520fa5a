"""Tasks on executors of `concurrent.futures`: processes, and clusters of other libraries."""
