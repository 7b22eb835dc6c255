"""The operations as the paper writes them: dense, readable, any dtype up to float64, differentiated by autograd."""
