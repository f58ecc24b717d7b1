/** The ways in which a picture arrives: chosen, photographed, dropped anywhere or pasted. */

/** Calls `take` with each file that arrives; `complain` with words where something else was dropped. */
export function listen(inputs, take, complain) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      const [file] = input.files;
      if (file) take(file);
      input.value = ""; // so that the same file can be chosen again
    });
  }

  addEventListener("paste", ({ clipboardData }) => {
    const [file] = clipboardData?.files ?? [];
    if (file) take(file);
  });

  const over = (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  };
  addEventListener("dragenter", over);
  addEventListener("dragover", over);
  addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) take(file);
    else complain("That was no file. Save the picture first, then drop its file here.");
  });
}
