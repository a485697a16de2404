"""What compiled passes run on: worker threads, barriers and a pool of buffers."""
