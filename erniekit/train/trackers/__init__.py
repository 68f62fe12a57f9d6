"""Trackers that show metrics, texts and answers of a run: TensorBoard, Weights & Biases, SwanLab."""
