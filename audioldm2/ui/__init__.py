"""The page of `audioldm2 ui`, its queue and its API; `components`, `page` and `server` import Gradio."""
