"""DICOMweb (PS3.18): searching, reading and storing series on a server."""
