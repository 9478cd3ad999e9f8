"""JupyterLab for this project: `make lab` and tests/test_lab.py start it with this file and change nothing in your home."""
c = get_config()  # noqa: F821  (given by Jupyter)

# Ploomber's server extension answers 500 to every notebook opened in JupyterLab 4. Our stages carry their own parameters cell, so nothing is lost.
c.ServerApp.jpserver_extensions = {"ploomber": False, "ploomber_extension": False}
c.NotebookApp.nbserver_extensions = {"ploomber": False, "ploomber_extension": False}

# 127.0.0.1 alone, and no news feed or update check from a workbook that may be opened offline
c.ServerApp.ip = "127.0.0.1"
c.LabApp.news_url = None
c.LabApp.extension_manager = "readonly"
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"


def clean_on_save(model, path, **kwargs):
    """Saved notebooks are clean notebooks, so a diff shows what a person wrote. Executed stages of a run (under runs/) are records,
    and copies of stages (under by_hand/) a person's own: left alone."""
    if "runs/" in path or "by_hand/" in path or model["type"] != "notebook":
        return
    from nbdev.clean import clean_jupyter
    clean_jupyter(path=path, model=model, **kwargs)
    if "nbs/stages/" in path:   # the page keeps them; the file that is committed does not
        for cell in model["content"]["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = []


c.ContentsManager.pre_save_hook = clean_on_save
