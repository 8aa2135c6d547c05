"""What each command of `chorus` does; a module is imported only when one of its commands is given."""
