"""What a reader sees of results: text and Markdown tables, inline SVG plots, one HTML page."""
