"""Input: images from folders, masks drawn on the fly, and the grain pipeline that joins them."""
