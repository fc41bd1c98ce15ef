"""Files of videos and pictures: reading them under guard, and writing them."""
