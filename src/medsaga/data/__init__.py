"""Reading images and label maps, and turning them into what a model sees."""
