"""What comes into the service: sockets, admission, security, the scheduler of frames, processes of cameras."""
