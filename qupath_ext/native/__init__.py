"""QuPath projects read and written without Java: project.qpproj (JSON) and data.qpdata (Java serialisation)."""
