"""Where metrics, texts and answers of a run are shown: TensorBoard, Weights & Biases, SwanLab."""
