"""A stored reference of a whole model: what a backend is compared with where the reference cannot
run beside it. It is made one layer at a time, so the machine that makes it needs little memory."""
