"""Rate, distortion and perception of a bundle on a folder of images."""
