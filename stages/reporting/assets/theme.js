// The button that goes from the colours of the system to light to dark and back.
{
  const order = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  const show = (name) => {
    document.documentElement.style.colorScheme = name === "system" ? "light dark" : name;
    document.documentElement.dataset.theme = name;
    button.textContent = `colours: ${name}`;
  };
  button.addEventListener("click", () => {
    const now = order.indexOf(document.documentElement.dataset.theme);
    show(order[(now + 1) % order.length]);
  });
  button.hidden = false;
  show("system");
}
