"use strict";
// The theme of the page: that of the system, or the one chosen by the button, which is stored. It is set before the page is painted.
{
  const KEY = "softxent-theme";
  let kept = null;
  try {
    kept = localStorage.getItem(KEY);
  } catch {} // a browser may refuse storage, as it does in the frames of some notebooks
  const root = document.documentElement;
  if (kept === "dark" || kept === "light") root.style.colorScheme = kept;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.ariaPressed = String((root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark");
    button.addEventListener("click", () => {
      const chosen = button.ariaPressed === "true" ? "light" : "dark";
      button.ariaPressed = String(chosen === "dark");
      root.style.colorScheme = chosen;
      try {
        localStorage.setItem(KEY, chosen);
      } catch {}
    });
  });
}
