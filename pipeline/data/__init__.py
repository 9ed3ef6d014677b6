"""Text and questions: wheels that carry data sets, calibration text, contamination."""
